"""From uploaded pictures to predictions: decoding, batching, and the contract with the model replicas."""

"""Run one network: plain torch, and what is faster on this machine."""

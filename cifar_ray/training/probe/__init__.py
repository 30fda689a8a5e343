"""The probe: a linear head on the features of a pretrained network."""

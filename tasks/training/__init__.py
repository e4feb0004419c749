"""Training: one loop for SFT and reward models, every way to optimise a policy, and the formulas they rest on."""

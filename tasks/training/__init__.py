"""Training: one loop for SFT and reward models, rollouts and PPO, and the formulas they rest on."""

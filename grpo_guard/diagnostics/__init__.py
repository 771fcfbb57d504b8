"""What a run measures of itself: ratios by step, rewards, progress, and the noise floor."""

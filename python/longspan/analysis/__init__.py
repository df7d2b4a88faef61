"""What a method does to a model, looked at or fitted offline: predictors, thresholds, pictures."""

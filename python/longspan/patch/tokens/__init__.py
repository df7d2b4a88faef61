"""Token methods in the decoder layers: which rows of the residual stream a layer computes or differentiates."""

"""elmoe: lossless Elastic self-speculative decoding for Mixture-of-Experts models."""

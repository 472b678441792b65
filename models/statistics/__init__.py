"""The statistics with which two models are compared on the same items: paired, by cluster, without a model."""

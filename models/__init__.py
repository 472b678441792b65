"""Chat models in torch and transformers: rendering, packing, training, scoring, merging. Never imports ray."""

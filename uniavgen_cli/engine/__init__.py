"""One engine for every task: request, conditions, sampler, codecs, clip."""

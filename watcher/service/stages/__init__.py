"""The stages of the pipeline: claim, take over, judge, decode, classify, file, observe."""

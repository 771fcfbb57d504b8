"""A synthetic world of coloured shapes and printed words, simple enough to be judged exactly."""

"""A synthetic world of coloured shapes and printed words, small enough to be judged exactly."""

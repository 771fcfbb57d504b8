"""What the study of over-optimization found, from its committed runs to the words of its page."""

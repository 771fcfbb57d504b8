"""Pages of the site that are made from the code: settings, messages, the list of decisions."""

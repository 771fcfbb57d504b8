"""What all commands share: compose a configuration, launch processes, report mistakes in a line."""

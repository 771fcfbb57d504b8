"""What a run will cost, predicted without running it: memory, operations, traffic.

Components state their own costs (such as `Kl.reference_forwards`); the modules here only add up.
"""

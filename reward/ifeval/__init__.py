"""The 25 verifiable instructions of IFEval, with one file for each family of instructions."""

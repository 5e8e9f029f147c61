"""The 25 verifiable instructions of IFEval, one file a family; `kinds` is the table of them."""

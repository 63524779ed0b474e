"""The methods that print ops, one file per part of the hopper dialect."""

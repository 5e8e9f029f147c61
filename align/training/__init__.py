"""What every stage that trains shares: TRL's arguments, checkpoints, the fit itself."""

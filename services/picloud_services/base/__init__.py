"""What every floor of the control plane stands on: clock, database, events, codec, ticker."""

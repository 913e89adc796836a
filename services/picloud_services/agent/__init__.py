"""The node agent: owns the containers of one machine and outlives the control plane."""

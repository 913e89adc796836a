"""What launches and runs user code."""

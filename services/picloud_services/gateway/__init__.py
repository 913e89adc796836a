"""HTTP: who asks, what for, and the answer. Handlers decode, call one service method and encode."""

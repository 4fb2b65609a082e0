"""The teacher: networks that label crops, with the same bits on one engine."""

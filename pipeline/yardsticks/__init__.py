"""What the worst and the best possible would score on this text, at these sizes, by this method."""

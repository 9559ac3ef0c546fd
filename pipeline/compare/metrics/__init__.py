"""The metrics, a module for each kind; its classes register themselves when a metric is first asked for."""

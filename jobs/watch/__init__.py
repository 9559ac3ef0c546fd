"""What is recorded of a run while it goes on, and the page that shows it."""

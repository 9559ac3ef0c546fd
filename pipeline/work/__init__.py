"""What a run is made of: tasks, and how it is known which of them are done."""

"""What users can set: a section of the experiment file each, with its defaults and bounds, and what they can name."""

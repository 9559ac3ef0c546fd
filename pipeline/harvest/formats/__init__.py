"""The forms in which dictionaries come, one module for each library; they register themselves."""

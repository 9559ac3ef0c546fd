"""The floors and ceilings that come with the package, one class each."""

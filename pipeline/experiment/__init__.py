"""A whole experiment, its stages one after the other: run it, see how far it is, forecast what it will take."""

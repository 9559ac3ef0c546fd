"""The matching methods: functions from candidate pairs to the positions of those that are chosen."""

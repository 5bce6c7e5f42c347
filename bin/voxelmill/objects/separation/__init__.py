"""Objects that touch: semantic labels become ids, in windows that give what the whole volume would."""

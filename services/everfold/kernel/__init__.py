"""The vocabulary that every part of Everfold shares: ids, time, limits and errors. Imports nothing but the standard
library.
"""

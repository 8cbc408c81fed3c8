"""Benchmarks that only this project needs: peers, targets, growth, and pages made of the results."""

"""turnlane"""

"""Loaders of bundles, for apps to take with them: Python, C++, Kotlin and Swift."""

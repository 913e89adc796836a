"""The control plane put together: start, composition, upkeep, end.

``startup`` takes the home and says what went wrong, ``control_plane`` builds the parts and joins them,
``upkeep`` lists what is done again and again, ``facts`` describes the service to its owner.
"""

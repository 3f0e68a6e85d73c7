"""What must work in Slicer, as unittest cases that run inside it: one module for each start of the application.

They see nothing but what a user sees (widgets of the panels, nodes of the scene), except where a worker without
networks is put behind the panel because networks are not the point. `hand` clicks.
"""

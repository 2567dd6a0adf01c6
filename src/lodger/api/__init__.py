"""The HTTP faces: dialects that turn foreign JSON into `lodger.tasks` and back, over one `lodger.service.Service`."""

"""The workbench's page and its routes. Of the server this place alone knows the client: the page is one."""

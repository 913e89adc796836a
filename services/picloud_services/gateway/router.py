"""(method, path) -> route and the names in the path. Pure."""

from collections.abc import Iterable
from urllib.parse import unquote

from picloud_jupyter.protocol.errors import NotFound
from picloud_services.gateway.words import Route, WrongMethod


class Router:
    """Finds routes: those without names by one look-up, the others among those of equal length."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._plain: dict[str, dict[str, Route]] = {}
        self._named: dict[int, list[tuple[list[str], dict[str, Route]]]] = {}
        for route in routes:
            self._methods_of(route.path)[route.method] = route

    def _methods_of(self, path: str) -> dict[str, Route]:
        if "{" not in path:
            return self._plain.setdefault(path, {})
        template = path.split("/")
        same_length = self._named.setdefault(len(template), [])
        for known, methods in same_length:
            if known == template:
                return methods
        same_length.append((template, {}))
        return same_length[-1][1]

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]]:
        """Return the route for ``path`` and what its ``{names}`` are, decoded.

        Raises:
            NotFound: there is no such path.
            WrongMethod: there is, with other methods; the message names them.
        """
        names: tuple[str, ...] = ()
        methods = self._plain.get(path)
        if methods is None:
            methods, names = self._find_named(path)
        route = methods.get(method)
        if route is None:
            raise WrongMethod(method, path, sorted(methods))
        return route, names

    def _find_named(self, path: str) -> tuple[dict[str, Route], tuple[str, ...]]:
        segments = path.split("/")
        for template, methods in self._named.get(len(segments), ()):
            names = []
            for wanted, found in zip(template, segments, strict=True):
                if wanted.startswith("{") and found:
                    names.append(unquote(found))
                elif wanted != found:
                    break
            else:
                return methods, tuple(names)
        raise NotFound(f"there is nothing at {path[:200]}")

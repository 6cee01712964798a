"""A service as it was before it was metered: its own users, a database, mounts, CORS, compression."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from sqlalchemy import Engine, ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

Endpoint = Callable[[Request], Awaitable[Response]]
Id = Annotated[int, mapped_column(primary_key=True)]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[Id]
    name: Mapped[str]
    token_hash: Mapped[str] = mapped_column(unique=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[Id]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    text: Mapped[str]


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def create_database(url: str = "sqlite://") -> Engine:
    """With two accounts to try it with."""
    if url == "sqlite://":  # In memory, for all threads.
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        if session.scalar(select(Account)) is None:
            session.add_all(
                Account(name=name, token_hash=hashed(f"token-of-{name}")) for name in ("ada", "bob")
            )
            session.commit()
    if url != "sqlite://":
        engine.dispose()  # A process that is forked from this one opens connections of its own.
    return engine


@dataclass(frozen=True)
class User(BaseUser):
    """Who is asking: what the rest of the service goes by."""

    account_id: int
    name: str

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return self.name

    @property
    def identity(self) -> str:
        return f"account-{self.account_id}"


class Tokens(AuthenticationBackend):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, User] | None:
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        user = await run_in_threadpool(self.user_of, token)
        return None if user is None else (AuthCredentials(["notes"]), user)

    def user_of(self, token: str) -> User | None:
        with Session(self.engine) as session:
            found = session.scalar(select(Account).where(Account.token_hash == hashed(token)))
            return None if found is None else User(found.id, found.name)


def list_notes(request: Request) -> Response:
    with Session(request.app.state.engine) as session:
        notes = session.scalars(select(Note).where(Note.account_id == request.user.account_id))
        return JSONResponse([{"id": note.id, "text": note.text} for note in notes])


async def add_note(request: Request) -> Response:
    text = (await request.json())["text"]
    return await run_in_threadpool(keep_note, request, text)


def keep_note(request: Request, text: str) -> Response:
    with Session(request.app.state.engine) as session:
        note = Note(account_id=request.user.account_id, text=text)
        session.add(note)
        session.commit()
        return JSONResponse({"id": note.id}, status_code=201)


def healthz(request: Request) -> Response:
    return PlainTextResponse("ok")


def create_service(
    engine: Engine, *, add: Endpoint = add_note, inner: tuple[Middleware, ...] = ()
) -> Starlette:
    """The service; `inner` stands behind the authentication."""
    api = Starlette(routes=[Route("/notes", list_notes), Route("/notes", add, methods=["POST"])])
    api.state.engine = engine
    return Starlette(
        routes=[Route("/healthz", healthz), Mount("/api", api)],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["https://notes.example"], allow_headers=["*"]),
            Middleware(AuthenticationMiddleware, backend=Tokens(engine)),
            *inner,
            Middleware(GZipMiddleware, minimum_size=200),
        ],
    )

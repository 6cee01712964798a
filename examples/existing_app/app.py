"""An assistant that answers questions and summarizes files."""

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import jwt
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, UploadFile, WebSocket
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from fastapi.security.utils import get_authorization_scheme_param
from openai import AsyncOpenAI
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.requests import HTTPConnection
from starlette.types import Scope

from meterkit import Contact, MeterKit, MeterMiddleware, record, record_usage, tap
from meterkit.fastapi import Current, billing_router

SECRET = os.environ.get("JWT_SECRET", "a-secret-for-development-alone-0123")
ORIGIN = os.environ.get("ORIGIN", "http://localhost:3000")

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///app.db"))
model = AsyncOpenAI()  # reads OPENAI_API_KEY and OPENAI_BASE_URL


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password: Mapped[bytes]


class File(Base):
    __tablename__ = "files"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    text: Mapped[str]
    summary: Mapped[str | None]


Base.metadata.create_all(engine)


def hash_password(email: str, password: str) -> bytes:
    return hashlib.scrypt(password.encode(), salt=email.encode(), n=2**14, r=8, p=1)


def make_token(account: int) -> dict[str, str]:
    claims = {"sub": str(account), "exp": datetime.now(UTC) + timedelta(days=1)}
    return {"access_token": jwt.encode(claims, SECRET, "HS256"), "token_type": "bearer"}


def read_token(token: str) -> int | None:
    try:
        return int(jwt.decode(token, SECRET, ["HS256"])["sub"])
    except jwt.InvalidTokenError:
        return None


def signed_in(token: Annotated[str, Depends(OAuth2PasswordBearer("login"))]) -> int:
    account = read_token(token)
    if account is None:
        raise HTTPException(401)
    return account


def customer_of(scope: Scope) -> str | None:
    """Name the customer of a request: the account of its token."""
    connection = HTTPConnection(scope)
    _, token = get_authorization_scheme_param(connection.headers.get("authorization"))
    if scope["type"] == "websocket":
        token = connection.query_params.get("token", "")
    account = read_token(token)
    return None if account is None else f"account-{account}"


def contact_of(customer: str) -> Contact | None:
    with Session(engine) as session:
        account = session.get(Account, int(customer.removeprefix("account-")))
        return None if account is None else Contact(account.email)


def payer(caller: Current) -> str:
    return caller.customer


SignedIn = Annotated[int, Depends(signed_in)]
kit = MeterKit("plans.yaml", contact=contact_of)
app = FastAPI(title="Assistant")
app.add_middleware(MeterMiddleware, kit=kit, identify=customer_of)
app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["*"], allow_headers=["*"])
app.include_router(billing_router(kit, customer=payer, origins=[ORIGIN]), prefix="/billing")


class NewAccount(BaseModel):
    email: str
    password: str


class Question(BaseModel):
    text: str


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.post("/signup", status_code=201)
def sign_up(given: NewAccount) -> dict[str, str]:
    account = Account(email=given.email, password=hash_password(given.email, given.password))
    with Session(engine) as session:
        session.add(account)
        try:
            session.commit()
        except IntegrityError:
            raise HTTPException(409) from None
        return make_token(account.id)


@app.post("/login")
def login(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, str]:
    with Session(engine) as session:
        account = session.scalar(select(Account).where(Account.email == form.username))
        if account is None or account.password != hash_password(form.username, form.password):
            raise HTTPException(401)
        return make_token(account.id)


async def answer(question: str) -> AsyncIterator[str]:
    stream = await model.chat.completions.create(
        model="gpt-5-mini",
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in tap(stream):
        for choice in chunk.choices:  # The last chunk has the usage and no choice.
            yield choice.delta.content or ""


@app.post("/ask")
async def ask(question: Question, account: SignedIn) -> StreamingResponse:
    return StreamingResponse(answer(question.text), media_type="text/plain")


@app.websocket("/live")
async def live(websocket: WebSocket, token: str = "") -> None:
    if read_token(token) is None:
        await websocket.close(1008)
        return
    await websocket.accept()
    async for question in websocket.iter_text():
        async for piece in answer(question):
            await websocket.send_text(piece)


def store(file: File) -> int:
    with Session(engine) as session:
        file = session.merge(file)
        session.commit()
        return file.id


async def summarize(file: File) -> None:
    completion = await model.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": f"Summarize: {file.text}"}]
    )
    record_usage(completion)
    file.summary = completion.choices[0].message.content
    await run_in_threadpool(store, file)


@app.post("/files", status_code=201)
async def upload(upload: UploadFile, account: SignedIn, tasks: BackgroundTasks) -> dict[str, int]:
    content = await upload.read()
    record(uploaded_bytes=len(content))
    file = File(account_id=account, text=content.decode(errors="replace"))
    file.id = await run_in_threadpool(store, file)
    tasks.add_task(summarize, file)
    return {"id": file.id}


@app.get("/files")
def files(account: SignedIn) -> dict[int, str | None]:
    with Session(engine) as session:
        found = session.scalars(select(File).where(File.account_id == account))
        return {file.id: file.summary for file in found}

# A live copy of PostgreSQL tables in Elixir 1.14 or later, without packages.
#
#     TABLES=users,orders NATS_URL=nats://user:password@host:4222 elixir live_copy.exs
#
# Each table is copied by a snapshot and then kept equal to its source by its events. After each event the program prints the table's
# name and its rows as JSON; messages for people go to stderr. It follows the rules of docs/consumers.md.
#
#   TABLES       tokens of the tables, separated by commas
#   NATS_URL     nats://127.0.0.1:4222 by default
#   STREAM       the bridge's stream, CDC by default
#   FORMAT       msgpack or json: a body in the other encoding is an error; by default both are read
#   COMPRESSION  none or zstd: `none` makes a compressed body an error. By default both are read; zstd needs OTP 28 or the program `zstd`
#
# It ends with 1 when a table cannot be copied. A lost connection is made again, and each copy goes on at its place.

defmodule MessagePack do
  # https://github.com/msgpack/msgpack/blob/master/spec.md

  @doc "The one value in `bytes`. Binary values come as {:binary, bytes}, what no float can hold as PostgreSQL's word."
  def decode(bytes) do
    case value(bytes) do
      {value, ""} -> value
      {_, rest} -> raise ArgumentError, "#{byte_size(rest)} bytes after the value"
    end
  end

  defp value(<<0::1, n::7, rest::binary>>), do: {n, rest}
  defp value(<<0b1000::4, n::4, rest::binary>>), do: map(n, rest, %{})
  defp value(<<0b1001::4, n::4, rest::binary>>), do: list(n, rest, [])
  defp value(<<0b101::3, n::5, text::binary-size(n), rest::binary>>), do: {text, rest}
  defp value(<<0xC0, rest::binary>>), do: {nil, rest}
  defp value(<<0xC2, rest::binary>>), do: {false, rest}
  defp value(<<0xC3, rest::binary>>), do: {true, rest}
  defp value(<<0xC4, n::8, bytes::binary-size(n), rest::binary>>), do: {{:binary, bytes}, rest}
  defp value(<<0xC5, n::16, bytes::binary-size(n), rest::binary>>), do: {{:binary, bytes}, rest}
  defp value(<<0xC6, n::32, bytes::binary-size(n), rest::binary>>), do: {{:binary, bytes}, rest}
  defp value(<<0xCA, n::float-32, rest::binary>>), do: {n, rest}
  defp value(<<0xCB, n::float-64, rest::binary>>), do: {n, rest}
  defp value(<<0xCB, 0x7FF0000000000000::64, rest::binary>>), do: {"Infinity", rest}
  defp value(<<0xCB, 0xFFF0000000000000::64, rest::binary>>), do: {"-Infinity", rest}
  defp value(<<0xCB, _::64, rest::binary>>), do: {"NaN", rest}
  defp value(<<0xCC, n::8, rest::binary>>), do: {n, rest}
  defp value(<<0xCD, n::16, rest::binary>>), do: {n, rest}
  defp value(<<0xCE, n::32, rest::binary>>), do: {n, rest}
  defp value(<<0xCF, n::64, rest::binary>>), do: {n, rest}
  defp value(<<0xD0, n::signed-8, rest::binary>>), do: {n, rest}
  defp value(<<0xD1, n::signed-16, rest::binary>>), do: {n, rest}
  defp value(<<0xD2, n::signed-32, rest::binary>>), do: {n, rest}
  defp value(<<0xD3, n::signed-64, rest::binary>>), do: {n, rest}
  defp value(<<0xD9, n::8, text::binary-size(n), rest::binary>>), do: {text, rest}
  defp value(<<0xDA, n::16, text::binary-size(n), rest::binary>>), do: {text, rest}
  defp value(<<0xDB, n::32, text::binary-size(n), rest::binary>>), do: {text, rest}
  defp value(<<0xDC, n::16, rest::binary>>), do: list(n, rest, [])
  defp value(<<0xDD, n::32, rest::binary>>), do: list(n, rest, [])
  defp value(<<0xDE, n::16, rest::binary>>), do: map(n, rest, %{})
  defp value(<<0xDF, n::32, rest::binary>>), do: map(n, rest, %{})
  defp value(<<0b111::3, _::5, _::binary>> = bytes), do: negative(bytes)
  defp value(_), do: raise(ArgumentError, "no MessagePack, or a part of it")

  defp negative(<<n::signed-8, rest::binary>>), do: {n, rest}

  defp list(0, rest, found), do: {Enum.reverse(found), rest}

  defp list(n, rest, found) do
    {value, rest} = value(rest)
    list(n - 1, rest, [value | found])
  end

  defp map(0, rest, found), do: {found, rest}

  defp map(n, rest, found) do
    {key, rest} = value(rest)
    {value, rest} = value(rest)
    map(n - 1, rest, Map.put(found, key, value))
  end
end

defmodule Json do
  # Elixir has a module for JSON from 1.18 on

  @doc "The one value in `text`, integers of any size."
  def decode(text) do
    {value, rest} = value(text)
    if String.trim(rest) != "", do: raise(ArgumentError, "text after the JSON value")
    value
  end

  @doc "A value as JSON; binary values as base64."
  def encode(nil), do: "null"
  def encode(value) when is_boolean(value) or is_number(value), do: to_string(value)
  def encode({:binary, bytes}), do: [?", Base.encode64(bytes), ?"]
  def encode(text) when is_binary(text), do: [?", Enum.map(String.to_charlist(text), &escaped/1), ?"]
  def encode(list) when is_list(list), do: [?[, Enum.intersperse(Enum.map(list, &encode/1), ?,), ?]]

  def encode(map) when is_map(map) do
    [?{, map |> Enum.map(fn {key, value} -> [encode(to_string(key)), ?:, encode(value)] end) |> Enum.intersperse(?,), ?}]
  end

  defp escaped(char) when char in [?", ?\\], do: [?\\, char]
  defp escaped(char) when char < 32, do: :io_lib.format("\\u~4.16.0b", [char])
  defp escaped(char), do: <<char::utf8>>

  defp value(<<space, rest::binary>>) when space in ' \t\r\n', do: value(rest)
  defp value("null" <> rest), do: {nil, rest}
  defp value("true" <> rest), do: {true, rest}
  defp value("false" <> rest), do: {false, rest}
  defp value("\"" <> rest), do: string(rest, [])
  defp value("[" <> rest), do: members(rest, ?], &value/1, [])

  defp value("{" <> rest) do
    {pairs, rest} = members(rest, ?}, &pair/1, [])
    {Map.new(pairs), rest}
  end

  defp value(text) do
    case Regex.run(~r/^-?\d+(\.\d+)?([eE][-+]?\d+)?/, text) do
      [number] -> {String.to_integer(number), after_first(text, number)}
      [number, "" | exponent] -> {float(number, ".0", exponent), after_first(text, number)}
      [number | _] -> {String.to_float(number), after_first(text, number)}
      nil -> raise ArgumentError, "no JSON: #{inspect(String.slice(text, 0, 20))}"
    end
  end

  defp float(number, fraction, [exponent]), do: String.to_float(String.replace_suffix(number, exponent, fraction <> exponent))

  defp after_first(text, start), do: binary_part(text, byte_size(start), byte_size(text) - byte_size(start))

  defp members(<<space, rest::binary>>, close, one, found) when space in ' \t\r\n,', do: members(rest, close, one, found)
  defp members(<<close, rest::binary>>, close, _, found), do: {Enum.reverse(found), rest}

  defp members(text, close, one, found) do
    {member, rest} = one.(text)
    members(rest, close, one, [member | found])
  end

  defp pair("\"" <> rest) do
    {key, rest} = string(rest, [])
    ":" <> rest = String.trim_leading(rest)
    {value, rest} = value(rest)
    {{key, value}, rest}
  end

  defp string("\"" <> rest, found), do: {IO.iodata_to_binary(Enum.reverse(found)), rest}

  defp string(<<"\\u", hex::binary-size(4), rest::binary>>, found), do: unit(String.to_integer(hex, 16), rest, found)
  defp string(<<"\\", char, rest::binary>>, found), do: string(rest, [unescaped(char) | found])

  defp string(text, found) do
    [plain] = Regex.run(~r/^[^"\\]+/s, text)
    string(after_first(text, plain), [plain | found])
  end

  # half of a surrogate pair, and all other code points
  defp unit(high, <<"\\u", hex::binary-size(4), rest::binary>>, found) when high in 0xD800..0xDBFF do
    string(rest, [<<0x10000 + (high - 0xD800) * 0x400 + String.to_integer(hex, 16) - 0xDC00::utf8>> | found])
  end

  defp unit(char, rest, found), do: string(rest, [<<char::utf8>> | found])

  defp unescaped(?b), do: "\b"
  defp unescaped(?f), do: "\f"
  defp unescaped(?n), do: "\n"
  defp unescaped(?r), do: "\r"
  defp unescaped(?t), do: "\t"
  defp unescaped(char), do: <<char>>
end

defmodule Nats do
  # https://docs.nats.io/reference/reference-protocols/nats-protocol

  @moduledoc """
  One connection to NATS, for the process that made it. `throw {:lost, reason}` says that it is of no use any more.
  """

  @answer_ms 10_000

  @doc "Connect and log in. The connection's inbox is subscribed to."
  def connect(url) do
    uri = URI.parse(url)
    if uri.scheme != "nats", do: stop("NATS_URL: #{url} does not begin with nats://; this program speaks no TLS")
    options = [:binary, active: false, packet: :line, buffer: 1_048_576, nodelay: true, keepalive: true]
    socket = ok(:gen_tcp.connect(String.to_charlist(uri.host), uri.port || 4222, options, @answer_ms))
    "INFO " <> _ = ok(:gen_tcp.recv(socket, 0, @answer_ms))
    nats = %{socket: socket, inbox: "_INBOX." <> Base.encode16(:crypto.strong_rand_bytes(12))}
    login = Map.merge(%{"verbose" => false, "pedantic" => false, "headers" => true, "no_responders" => true, "lang" => "elixir",
                        "version" => "1", "name" => "live_copy.exs", "protocol" => 1}, user(uri.userinfo))
    send_lines(nats, ["CONNECT ", Json.encode(login), "\r\nPING\r\nSUB ", nats.inbox, ".* 1\r\n"])
    logged_in(nats)
  end

  @doc "Publish; an answer, if one is asked for, comes to `name` of the inbox."
  def publish(nats, subject, body, name \\ nil) do
    reply = if name, do: [nats.inbox, ?., name, " "], else: []
    send_lines(nats, ["PUB ", subject, " ", reply, to_string(byte_size(body)), "\r\n", body, "\r\n"])
  end

  @doc "Ask a JetStream API and return its answer. Other messages that come meanwhile are dropped: ask before you read."
  def ask(nats, api, body \\ %{}) do
    name = Base.encode16(:crypto.strong_rand_bytes(6))
    publish(nats, "$JS.API." <> api, IO.iodata_to_binary(Json.encode(body)), name)
    answer(nats, nats.inbox <> "." <> name)
  end

  @doc "The next message as %{subject, reply, headers, body}, or nil when none comes within `wait_ms`."
  def next(nats, wait_ms) do
    :ok = :inet.setopts(nats.socket, packet: :line)

    case :gen_tcp.recv(nats.socket, 0, wait_ms) do
      {:ok, "MSG " <> line} -> message(nats, String.split(line), false)
      {:ok, "HMSG " <> line} -> message(nats, String.split(line), true)
      {:ok, "PING" <> _} -> send_lines(nats, "PONG\r\n") && next(nats, wait_ms)
      {:ok, "-ERR " <> reason} -> throw({:lost, String.trim(reason)})
      {:ok, _} -> next(nats, wait_ms)
      {:error, :timeout} -> nil
      {:error, reason} -> throw({:lost, inspect(reason)})
    end
  end

  @doc "End the connection."
  def close(nats), do: :gen_tcp.close(nats.socket)

  @doc "End the program with a word."
  def stop(reason) do
    IO.puts(:stderr, reason)
    System.halt(1)
  end

  defp user(nil), do: %{}

  defp user(userinfo) do
    case userinfo |> String.split(":", parts: 2) |> Enum.map(&URI.decode/1) do
      [user, password] -> %{"user" => user, "pass" => password}
      [token] -> %{"auth_token" => token}
    end
  end

  defp logged_in(nats) do
    case ok(:gen_tcp.recv(nats.socket, 0, @answer_ms)) do
      "PONG" <> _ -> nats
      "-ERR " <> reason -> throw({:lost, String.trim(reason)})
      _ -> logged_in(nats)
    end
  end

  defp answer(nats, subject) do
    case next(nats, @answer_ms) do
      %{subject: ^subject, headers: %{"status" => status}} -> %{"error" => %{"code" => status, "description" => "no JetStream here"}}
      %{subject: ^subject, body: body} -> Json.decode(body)
      nil -> throw({:lost, "no answer"})
      _ -> answer(nats, subject)
    end
  end

  defp message(nats, words, has_headers) do
    {subject, reply, sizes} =
      case {words, has_headers} do
        {[subject, _sid, reply, headers, size], true} -> {subject, reply, [headers, size]}
        {[subject, _sid, headers, size], true} -> {subject, nil, [headers, size]}
        {[subject, _sid, reply, size], false} -> {subject, reply, ["0", size]}
        {[subject, _sid, size], false} -> {subject, nil, ["0", size]}
      end

    [of_headers, size] = Enum.map(sizes, &String.to_integer/1)
    :ok = :inet.setopts(nats.socket, packet: :raw)
    <<headers::binary-size(of_headers), body::binary-size(size - of_headers), "\r\n">> = ok(:gen_tcp.recv(nats.socket, size + 2, @answer_ms))
    %{subject: subject, reply: reply, headers: headers(headers), body: body}
  end

  @doc "NATS's headers as a map; a status of the first line is under `status`."
  def headers(""), do: %{}

  def headers(text) do
    ["NATS/1.0" <> status | lines] = String.split(text, "\r\n", trim: true)
    found = for line <- lines, [name, value] <- [String.split(line, ":", parts: 2)], into: %{}, do: {name, String.trim(value)}
    if String.trim(status) == "", do: found, else: Map.put(found, "status", String.slice(String.trim(status), 0, 3))
  end

  defp send_lines(nats, lines), do: ok(:gen_tcp.send(nats.socket, lines))

  defp ok(:ok), do: :ok
  defp ok({:ok, value}), do: value
  defp ok({:error, reason}), do: throw({:lost, inspect(reason)})
end

defmodule Reader do
  @moduledoc """
  What a stream holds after a place, in order, each message once, by a pull consumer of this connection alone. The server forgets
  the consumer a minute after the connection has ended.
  """

  @batch 500
  @expires_s 5

  def new(nats, stream, subjects, place), do: %{nats: nats, stream: stream, subjects: subjects, place: place, consumer: nil, at: 0, asked: 0}

  @doc "The next message with its sequence, and the reader after it; waits as long as it takes. Calls `idle` when nothing has come for 5 s."
  def next(reader, idle \\ fn -> nil end) do
    reader = reader |> with_consumer() |> with_request()

    case Nats.next(reader.nats, 2 * @expires_s * 1000) do
      nil ->
        throw({:lost, "no answer"})

      %{headers: %{"status" => status}} when status in ["404", "408", "409"] ->
        idle.()
        # 409 also says that the consumer is gone: make it again from our place
        next(%{reader | asked: 0, consumer: if(status == "408", do: reader.consumer)}, idle)

      %{headers: %{"status" => "100"}} ->
        next(reader, idle)

      %{headers: %{"status" => _}} ->
        Process.sleep(500)
        next(%{reader | asked: 0, consumer: nil}, idle)

      %{reply: "$JS.ACK." <> _ = reply} = message ->
        {seq, at} = places(String.split(reply, "."))

        if at == reader.at + 1,
          do: {Map.put(message, :seq, seq), %{reader | place: seq, at: at, asked: reader.asked - 1}},
          else: next(%{reader | asked: 0, consumer: nil}, idle)

      _ ->
        next(reader, idle)
    end
  end

  defp with_consumer(%{consumer: nil} = reader) do
    config = %{deliver_policy: "by_start_sequence", opt_start_seq: reader.place + 1, ack_policy: "none", replay_policy: "instant",
               filter_subjects: reader.subjects, inactive_threshold: 60_000_000_000, mem_storage: true, num_replicas: 1}

    case Nats.ask(reader.nats, "CONSUMER.CREATE." <> reader.stream, %{stream_name: reader.stream, config: config}) do
      %{"name" => name} -> %{reader | consumer: name, at: 0, asked: 0}
      %{"error" => error} -> throw({:lost, "stream #{reader.stream}: #{error["description"]}"})
    end
  end

  defp with_consumer(reader), do: reader

  defp with_request(%{asked: 0} = reader) do
    body = IO.iodata_to_binary(Json.encode(%{batch: @batch, expires: @expires_s * 1_000_000_000}))
    Nats.publish(reader.nats, "$JS.API.CONSUMER.MSG.NEXT.#{reader.stream}.#{reader.consumer}", body, reader.consumer)
    %{reader | asked: @batch}
  end

  defp with_request(reader), do: reader

  # $JS.ACK.stream.consumer.delivered.seq.consumer_seq.time.pending, or with domain and account before the stream
  defp places([_, _, _, _, _, seq, at, _, _]), do: {String.to_integer(seq), String.to_integer(at)}
  defp places([_, _, _, _, _, _, _, seq, at | _]), do: {String.to_integer(seq), String.to_integer(at)}
end

defmodule Body do
  @moduledoc "Bodies of messages: compressed or not, MessagePack or JSON, one or many."

  @format System.get_env("FORMAT")
  @compression System.get_env("COMPRESSION")

  @doc "The bodies of a message; `dictionary` returns the value of a key of KV `dictionaries`. Raises ArgumentError for what is none."
  def all(message, dictionary) do
    message |> unpacked(dictionary) |> decoded() |> List.wrap()
  end

  defp unpacked(%{headers: %{"Content-Encoding" => "zstd"} = headers, body: body}, dictionary) do
    if @compression == "none", do: Nats.stop("a body is compressed, and COMPRESSION is none")
    Zstd.decompress(body, headers["Dictionary-Id"] && dictionary.(headers["Dictionary-Id"]))
  end

  defp unpacked(message, _), do: message.body

  defp decoded(<<first, _::binary>> = body) when first in [?{, ?[] do
    if @format == "msgpack", do: Nats.stop("a body is JSON, and FORMAT is msgpack")
    Json.decode(body)
  end

  defp decoded(body) do
    if @format == "json", do: Nats.stop("a body is MessagePack, and FORMAT is json")
    MessagePack.decode(body)
  end
end

defmodule Zstd do
  @moduledoc "zstd by OTP 28's own module, else by the program `zstd`."

  @doc "The content of one frame."
  def decompress(frame, dictionary) do
    cond do
      Code.ensure_loaded?(:zstd) -> by_otp(frame, dictionary)
      program = System.find_executable("zstd") -> by_program(program, frame, dictionary)
      true -> Nats.stop("a body is compressed: install the program zstd, or run on OTP 28 or later")
    end
  end

  defp by_otp(frame, nil), do: IO.iodata_to_binary(apply(:zstd, :decompress, [frame]))

  defp by_otp(frame, dictionary) do
    IO.iodata_to_binary(apply(:zstd, :decompress, [frame, %{dictionary: apply(:zstd, :dict, [:decompress, dictionary])}]))
  end

  defp by_program(program, frame, dictionary) do
    folder = Path.join(System.tmp_dir!(), "live_copy_" <> Base.encode16(:crypto.strong_rand_bytes(6)))
    File.mkdir!(folder)

    try do
      File.write!(Path.join(folder, "frame"), frame)
      if dictionary, do: File.write!(Path.join(folder, "dictionary"), dictionary)
      with_dictionary = if dictionary, do: ["-D", Path.join(folder, "dictionary")], else: []

      case System.cmd(program, ["-dcq" | with_dictionary] ++ [Path.join(folder, "frame")]) do
        {content, 0} -> content
        {_, status} -> raise ArgumentError, "zstd ended with #{status}"
      end
    after
      File.rm_rf!(folder)
    end
  end
end

defmodule Copy do
  @moduledoc "One table's copy: a snapshot, then events."

  @url System.get_env("NATS_URL", "nats://127.0.0.1:4222")
  @stream System.get_env("STREAM", "CDC")

  @doc "Keep the copy until the program ends."
  def run(table, copy \\ nil), do: run(table, connected(table, copy))

  # the copy when the connection is lost; nil when it must be made again
  defp connected(table, copy) do
    nats = Nats.connect(@url)

    try do
      copy = if fits?(nats, copy), do: copy, else: take(nats, table)
      follow(nats, table, copy)
    after
      Nats.close(nats)
    end
  catch
    {:lost, reason} ->
      say(table, "connecting again: #{reason}")
      Process.sleep(1000)
      copy
  end

  # -- a snapshot

  defp take(nats, table) do
    case Nats.ask(nats, "STREAM.INFO.INIT") do
      # a snapshot from before may no longer fit the stream
      %{"state" => %{"last_seq" => asked_at}} ->
        schema(nats, table)
        request = fn -> Nats.publish(nats, "snapshot.request.#{table}@#{@stream}", "") end
        request.()
        reader = Reader.new(nats, "INIT", ["init.*.#{table}", "init.snap.#{table}.>"], asked_at)
        gather(reader, table, request, nil)

      %{"error" => _} ->
        throw({:lost, "no stream INIT yet: the bridge makes it at its first start"})
    end
  end

  defp gather(reader, table, request, copy) do
    # the request is kept while no bridge runs; repeating it costs nothing, and the answer to a lost one would never come
    {message, reader} = Reader.next(reader, if(copy, do: fn -> nil end, else: request))
    kind = message.subject |> String.split(".") |> Enum.at(1)

    copy =
      Enum.reduce(Body.all(message, &dictionary/1), copy, fn body, copy ->
        ours = Map.get(body, "stream", "CDC") == @stream and body["error_type"] != "ambiguous"
        same = copy != nil and body["snapshot_id"] == copy.start["snapshot_id"]

        cond do
          kind == "start" and ours -> begin(table, body)
          kind == "error" and ours and (same or body["snapshot_id"] in [nil, ""]) -> Nats.stop("#{body["error_type"]}: #{body["error_message"]}")
          kind == "snap" and same -> %{copy | rows: Enum.reduce(body["data"], copy.rows, &Map.put(&2, key(copy, &1), &1))}
          kind == "meta" and same -> %{copy | complete: true}
          true -> copy
        end
      end)

    if copy != nil and copy.complete do
      print(table, copy)
      copy
    else
      gather(reader, table, request, copy)
    end
  end

  defp begin(table, start) do
    if start["format"] == "array", do: Nats.stop("#{table}: the bridge sends snapshots as arrays; run it without --snapshot-format array")
    key = for %{"pk" => true, "name" => name} <- start["columns"], do: name
    %{start: start, key: key, rows: %{}, place: start["stream_seq"], created: nil, id: nil, complete: false}
  end

  defp schema(nats, table) do
    key = if @stream == "CDC", do: table, else: "#{@stream}.#{table}"

    with %{"message" => %{"data" => data}} <- Nats.ask(nats, "STREAM.MSG.GET.KV_schemas", %{last_by_subj: "$KV.schemas.#{key}"}) do
      [schema] = Body.all(%{headers: %{}, body: Base.decode64!(data)}, nil)
      say(table, Enum.map_join(schema["columns"], ", ", &"#{&1["name"]} #{&1["data_type"]}"))
    end
  end

  # -- its place in the stream

  # docs/consumers.md, "Does your place still fit?"
  defp fits?(_, nil), do: false
  defp fits?(_, %{id: nil}), do: false

  defp fits?(nats, copy) do
    with %{"created" => created, "state" => state} <- Nats.ask(nats, "STREAM.INFO.#{@stream}", %{deleted_details: true}),
         %{"message" => %{"hdrs" => headers}} <- Nats.ask(nats, "STREAM.MSG.GET.#{@stream}", %{seq: copy.place}) do
      created == copy.created and state["last_seq"] >= copy.place and state["first_seq"] <= copy.place + 1 and
        not Enum.any?(state["deleted"] || [], &(&1 > copy.place)) and id(Nats.headers(Base.decode64!(headers))) == copy.id
    else
      _ -> false
    end
  end

  defp id(headers), do: headers["Nats-Msg-Id"] || headers["Walbridge-Msg-Id"]

  # -- events

  defp follow(nats, table, copy) do
    created =
      case Nats.ask(nats, "STREAM.INFO.#{@stream}") do
        %{"created" => created} -> created
        %{"error" => error} -> throw({:lost, "stream #{@stream}: #{error["description"]}"})
      end

    events(Reader.new(nats, @stream, ["cdc.#{table}.>", "cdc._bridge.>"], copy.place), table, %{copy | created: created})
  end

  # the copy when the connection is lost; nil when it must be made again
  defp events(reader, table, copy) do
    read =
      try do
        {message, reader} = Reader.next(reader)
        {bodies(message), message, reader}
      catch
        {:lost, reason} ->
          say(table, "connecting again: #{reason}")
          Process.sleep(1000)
          nil
      end

    with {bodies, message, reader} <- read,
         %{} = copy <- Enum.reduce_while(bodies, copy, &step(&1, &2, table)) do
      events(reader, table, %{copy | place: message.seq, id: id(message.headers)})
    else
      nil ->
        copy

      reason ->
        IO.puts("#{table} copying again: #{reason}")
        nil
    end
  end

  # a message with another id, or without one, does not come from a bridge
  defp bodies(message) do
    if bridges_id?(id(message.headers)), do: bodies_of_bridge(message), else: []
  end

  defp bridges_id?(nil), do: false
  defp bridges_id?(id), do: Regex.match?(~r/^[0-9a-f]{1,16}-[0-9]+-.+-[a-z]+$/s, id)

  # what cannot be read, or is another event than its id says, ends the program: nothing after it would be certain
  defp bodies_of_bridge(message) do
    bodies = Body.all(message, &dictionary/1)
    if List.last(bodies)["msg_id"] != id(message.headers), do: raise(ArgumentError, "it has another event than its id says")
    bodies
  rescue
    error in [ArgumentError, MatchError, FunctionClauseError] ->
      IO.puts(:stderr, "message #{message.seq} cannot be read: #{Exception.message(error)}")
      System.halt(1)
  end

  defp step(event, copy, table) do
    case applied(event, copy, table) do
      %{} = copy -> {:cont, copy}
      reason -> {:halt, reason}
    end
  end

  # the copy after an event, or why no event can tell what the table holds
  defp applied(%{"operation" => "GAP"} = event, copy, table) do
    if table in event["tables"], do: "changes are lost: #{event["reason"]}", else: copy
  end

  defp applied(%{"operation" => "PUBLISHED"} = event, copy, table) do
    version = copy.start["version"]
    is_other = version in [nil, ""] or version != event["version"]
    if event["table"] == table and is_other, do: "it is published differently, or not any more: #{event["reason"]}", else: copy
  end

  defp applied(%{"lsn" => lsn} = event, copy, table) do
    # the snapshot has what is older
    if lsn < copy.start["snapshot_lsn"], do: copy, else: changed(event, copy, table)
  end

  defp changed(%{"operation" => "SCHEMA", "columns" => columns}, copy, _) do
    if Enum.map(columns, &{&1["name"], &1["data_type"]}) == Enum.map(copy.start["columns"], &{&1["name"], &1["type"]}),
      do: copy,
      else: "its columns have changed"
  end

  defp changed(%{"operation" => "TRUNCATE"}, copy, table), do: print(table, %{copy | rows: %{}})

  defp changed(%{"operation" => "INSERT", "unchanged" => _}, _, _) do
    "an UPDATE moved a row into the row filter and did not send all of it"
  end

  defp changed(%{"operation" => "INSERT"} = event, copy, table), do: put(copy, written(event), table)

  defp changed(%{"operation" => "DELETE"} = event, copy, table) do
    case Map.pop(copy.rows, key(copy, event["data"])) do
      {nil, _} -> "there is no row #{inspect(key(copy, event["data"]))}"
      {_, rows} -> print(table, %{copy | rows: rows})
    end
  end

  defp changed(%{"operation" => "UPDATE"} = event, copy, table) do
    before = key(copy, event["old"] || event["data"])

    case Map.pop(copy.rows, before) do
      {nil, _} -> "there is no row #{inspect(before)}"
      # unchanged columns stay
      {row, rows} -> put(%{copy | rows: rows}, Map.merge(row, written(event)), table)
    end
  end

  defp put(copy, row, table) do
    if Map.has_key?(copy.rows, key(copy, row)),
      do: "two rows have one key: it is deferrable, or there is none",
      else: print(table, %{copy | rows: Map.put(copy.rows, key(copy, row), row)})
  end

  defp written(event), do: Map.merge(event["data"], Map.new(event["omitted"] || [], &{&1, nil}))

  defp key(copy, row), do: Enum.map(copy.key, &row[&1])

  # -- beside

  # the value of a key never changes, so it is asked for once; on a connection of its own, since messages are on their way on the other
  defp dictionary(key) do
    Process.get({:dictionary, key}) || fetched(key)
  end

  defp fetched(key) do
    nats = Nats.connect(@url)
    answer = Nats.ask(nats, "STREAM.MSG.GET.KV_dictionaries", %{last_by_subj: "$KV.dictionaries.#{key}"})
    Nats.close(nats)

    case answer do
      %{"message" => %{"data" => data}} ->
        Process.put({:dictionary, key}, Base.decode64!(data))
        Process.get({:dictionary, key})

      %{"error" => _} ->
        Nats.stop("dictionary #{key} is not in KV dictionaries, and messages need it")
    end
  end

  defp print(table, copy) do
    IO.puts([table, " ", Json.encode(Map.values(copy.rows))])
    copy
  end

  defp say(table, words), do: IO.puts(:stderr, "#{table}: #{words}")
end

case String.split(System.get_env("TABLES", ""), ",", trim: true) do
  [] -> Nats.stop("TABLES is not set; give the tokens of tables: TABLES=users,orders elixir live_copy.exs")
  tables -> tables |> Enum.map(&Task.async(fn -> Copy.run(&1) end)) |> Task.await_many(:infinity)
end

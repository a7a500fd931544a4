%% ejabberd module: writes one line for every iq that is routed: type, id, from,
%% to, name and namespace of the payload, separated by tabs. The lab counts
%% round trips with it.
-module(mod_lab_iq_log).
-behaviour(gen_mod).
-export([start/2, stop/1, reload/3, depends/2, mod_options/1, mod_doc/0]).
-export([note/1]).

start(_Host, _Opts) ->
    ejabberd_hooks:add(filter_packet, ?MODULE, note, 1).

stop(_Host) ->
    ejabberd_hooks:delete(filter_packet, ?MODULE, note, 1).

reload(_Host, _New, _Old) -> ok.
depends(_Host, _Opts) -> [].
mod_options(_Host) -> [].
mod_doc() -> #{}.

note(Packet) ->
    case xmpp:encode(Packet) of
        {xmlel, <<"iq">>, Attrs, Children} ->
            {Name, Space} = payload(Children),
            Fields = [attr(<<"type">>, Attrs), attr(<<"id">>, Attrs),
                      jid:encode(xmpp:get_from(Packet)), jid:encode(xmpp:get_to(Packet)),
                      Name, Space],
            ok = file:write_file(os:getenv("LAB_IQ_LOG"),
                                 [lists:join(<<"\t">>, Fields), <<"\n">>], [append]);
        _ ->
            ok
    end,
    Packet.

payload([{xmlel, Name, Attrs, _} | _]) -> {Name, attr(<<"xmlns">>, Attrs)};
payload([_ | Rest]) -> payload(Rest);
payload([]) -> {<<>>, <<>>}.

attr(Name, Attrs) -> proplists:get_value(Name, Attrs, <<>>).

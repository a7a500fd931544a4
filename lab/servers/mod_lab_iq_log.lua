-- Prosody module: writes one line for every iq that a client sends, before it
-- is routed: type, id, from, to, name and namespace of the payload, separated
-- by tabs. The lab counts round trips with it.
local log = assert(io.open(assert(os.getenv("LAB_IQ_LOG"), "LAB_IQ_LOG is not set"), "a"));
log:setvbuf("line");

local function note(event)
	local iq = event.stanza;
	local payload = iq.tags[1];
	log:write(table.concat({
		iq.attr.type or "", iq.attr.id or "", iq.attr.from or "", iq.attr.to or "",
		payload and payload.name or "", payload and payload.attr.xmlns or "",
	}, "\t"), "\n");
end

for _, kind in ipairs { "full", "bare", "host", "self" } do
	module:hook("pre-iq/" .. kind, note, 1000);
end

-- Limits in Redis: the same arithmetic as extproc/traffic/limits/buckets.py, in one atomic step for all limits of a request.
--
-- KEYS: due (zset: ticket -> when its reservation ends), open (hash: ticket -> reservation), pickers (zset: id -> seen), buckets...
-- ARGV: "take", ticket, picker, ttl in s; then for each bucket: amount, limit, rate, shadow (0/1), level to begin with,
--   what the picker has admitted alone and not told yet
--   -> {admitted, pickers, over, used, over, used, ...}; levels as text
-- ARGV: "settle"; then for each ticket: ticket, number of its buckets, and for each of these: which (1: the first of KEYS),
--   actual, rate, what the picker knows to be reserved
--   -> {how many of the tickets were not settled before, pickers, level of each bucket}; levels as text
-- A ticket that is settled stays known for a while: what is sent twice, or comes too late, changes nothing. One that is
-- not known was admitted while nobody could reach this server, or before it lost its memory: then the picker's word counts.

local MOST_LOWS, SLACK, REMEMBERED_S, EXPIRED_AT_ONCE, PICKER_S = 64, 1e-6, 120, 64, 30
local clock = redis.call("TIME")
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local due, open, pickers = KEYS[1], KEYS[2], KEYS[3]

local function drained(key, rate, level)
  local raw = redis.call("GET", key)
  if not raw then return {level, now, rate, {}} end
  local b = cmsgpack.unpack(raw)
  if now > b[2] then
    b[1] = math.max(b[1] - (now - b[2]) * b[3], 0)
  elseif now < b[2] then
    for i = 1, #b[4], 2 do b[4][i] = math.min(b[4][i], now) end
  end
  b[2] = now
  if rate > 0 then b[3] = rate end
  return b
end

local function keep(key, b)
  if b[1] <= 0 then
    redis.call("DEL", key)
  else
    redis.call("SET", key, cmsgpack.pack(b), "EX", math.ceil(b[1] / b[3]) + 60)
  end
end

local function take(b, amount)
  local lows = b[4]
  while #lows > 0 and lows[#lows] >= b[1] do
    lows[#lows] = nil
    lows[#lows] = nil
  end
  lows[#lows + 1] = b[2]
  lows[#lows + 1] = b[1]
  if #lows > 2 * MOST_LOWS then
    local place, closest = 1, math.huge
    for i = 1, #lows - 2, 2 do
      local apart = lows[i + 3] / math.max(lows[i + 1], 1)
      if apart < closest then place, closest = i, apart end
    end
    lows[place] = lows[place + 2]
    table.remove(lows, place + 2)
    table.remove(lows, place + 2)
  end
  b[1] = b[1] + amount
end

local function give_back(b, amount, since)
  local lows, kept, first = b[4], {}, nil
  for i = 1, #lows, 2 do
    if lows[i] > since then first = i break end
  end
  local given = math.min(amount, b[1], first and lows[first + 1] or amount)
  b[1] = b[1] - given
  for i = 1, #lows, 2 do
    local level = lows[i + 1]
    if first and i >= first then level = level - given end
    while #kept > 0 and kept[#kept] >= level do
      kept[#kept] = nil
      kept[#kept] = nil
    end
    kept[#kept + 1] = lows[i]
    kept[#kept + 1] = level
  end
  b[4] = kept
end

local function expire()
  for _, ticket in ipairs(redis.call("ZRANGEBYSCORE", due, "-inf", now, "LIMIT", 0, EXPIRED_AT_ONCE)) do
    local raw = redis.call("HGET", open, ticket)
    local held = raw and cmsgpack.unpack(raw) or {0}
    for i = 2, #held, 2 do
      if redis.call("EXISTS", held[i]) == 1 then
        local b = drained(held[i], 0, 0)
        give_back(b, held[i + 1], held[1])
        keep(held[i], b)
      end
    end
    redis.call("ZREM", due, ticket)
    redis.call("HDEL", open, ticket)
  end
end

local function remember(ticket, held, ttl)
  redis.call("HSET", open, ticket, cmsgpack.pack(held))
  redis.call("ZADD", due, now + ttl, ticket)
  redis.call("EXPIRE", open, 7200)
  redis.call("EXPIRE", due, 7200)
end

local function settle(ticket, first, last, levels)
  local raw = redis.call("HGET", open, ticket)
  local held = raw and cmsgpack.unpack(raw) or nil
  if held and #held == 1 then return 0 end
  local reserved, since = {}, held and held[1] or now
  if held then
    for i = 2, #held, 2 do reserved[held[i]] = held[i + 1] end
  end
  for at = first, last, 4 do
    local key, actual, rate = KEYS[3 + tonumber(ARGV[at])], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local before = reserved[key] or (held and 0) or tonumber(ARGV[at + 3])
    local b = drained(key, 0, 0)
    if b[3] <= 0 then b[3] = rate end
    if actual > before then
      b[1] = b[1] + actual - before
    elseif actual < before then
      give_back(b, before - actual, since)
    end
    keep(key, b)
    levels[key] = b[1]
  end
  remember(ticket, {now}, REMEMBERED_S)
  return 1
end

expire()

if ARGV[1] == "settle" then
  local at, settled, levels, answer = 2, 0, {}, {}
  while at < #ARGV do
    local last = at + 1 + 4 * tonumber(ARGV[at + 1])
    settled = settled + settle(ARGV[at], at + 2, last, levels)
    at = last + 1
  end
  answer[1], answer[2] = settled, redis.call("ZCARD", pickers)
  for i = 4, #KEYS do
    answer[i - 1] = string.format("%.6f", levels[KEYS[i]] or drained(KEYS[i], 0, 0)[1])
  end
  return answer
end

local ticket = ARGV[2]
redis.call("ZADD", pickers, now, ARGV[3])
redis.call("ZREMRANGEBYSCORE", pickers, "-inf", now - PICKER_S)
redis.call("EXPIRE", pickers, 120)
local known = redis.call("HEXISTS", open, ticket) == 1
local found, answer, admitted, held = {}, {1, redis.call("ZCARD", pickers)}, true, {now}
for i = 4, #KEYS do
  local at = 5 + (i - 4) * 6
  local amount, limit, rate = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local b = drained(KEYS[i], rate, tonumber(ARGV[at + 4]))
  local over = not known and b[1] + tonumber(ARGV[at + 5]) + math.min(amount, limit) > limit + SLACK
  if over and ARGV[at + 3] == "0" then admitted = false end
  found[i] = {b, amount, over}
end
for i = 4, #KEYS do
  local b, amount, over = found[i][1], found[i][2], found[i][3]
  if admitted and not known and not over then
    take(b, amount)
    held[#held + 1] = KEYS[i]
    held[#held + 1] = amount
  end
  keep(KEYS[i], b)
  answer[#answer + 1] = over and 1 or 0
  answer[#answer + 1] = string.format("%.6f", b[1])
end
if not admitted then
  answer[1] = 0
elseif not known then
  remember(ticket, held, tonumber(ARGV[4]))
end
return answer

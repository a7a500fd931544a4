package stun

var Parse = parse

const Limit = limit
